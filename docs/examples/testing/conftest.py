pytest_plugins = ["traced_tasks.testing"]
