"""`python -m samples.finetune`."""

from samples.finetune.workflow import main

main()
