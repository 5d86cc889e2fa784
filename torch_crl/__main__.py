"""`python -m torch_crl` is the command `torch-crl`."""

import sys

from torch_crl.cli.main import main

sys.exit(main())
