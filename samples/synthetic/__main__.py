"""`python -m samples.synthetic`."""

from samples.synthetic.write import parse_args, run

run(parse_args())
