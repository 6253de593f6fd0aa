"""Any bytes give a value or one of our typed errors, never another exception: every decoder, service and open port."""
