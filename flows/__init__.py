"""Algorithm 1 as Prefect flows, and the command line that starts them."""
