"""A service in virtual time, and everything that sends calls to it: batchcl's controller and its peers."""
