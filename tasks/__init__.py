"""Prefect shells, one a stage: retries, tags, a timeout and one `store.build`. What they run works without Prefect."""
