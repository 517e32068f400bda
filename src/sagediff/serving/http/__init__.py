"""HTTP around the engine, and the page. Only `app` knows the web framework."""
