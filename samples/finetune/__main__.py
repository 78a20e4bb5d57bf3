"""`python -m samples.finetune`."""

from samples.finetune.ship import main

main()
