"""`python -m t2t_vit`, the same as `t2t-vit`; what torchrun starts."""

import sys

from t2t_vit.cli import main

sys.exit(main())
