"""python -m sqlft"""

import sys

from sqlft.cli import main

sys.exit(main())
