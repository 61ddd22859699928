"""`python -m dynamo_fast`: the same as the command `dynamo-fast`."""

import sys

from dynamo_fast.cli.main import main

sys.exit(main())
