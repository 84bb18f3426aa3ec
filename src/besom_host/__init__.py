"""What lives on a host: the command line and, in time, the daemon. The engine is the package besom."""
