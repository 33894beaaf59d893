"""`python -m sppo.workers.<stage> run.json`: one per heavy process."""
