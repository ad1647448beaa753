"""python -m dataset.synthetic: see `dataset.synthetic.write`."""
import sys

from dataset.synthetic.write import main

sys.exit(main())
