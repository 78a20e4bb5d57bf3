"""One engine thread answers the requests of many clients: a bounded and fair queue, then slots."""
