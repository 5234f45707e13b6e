"""Live: somebody talks, a head listens. `listener` has no network inside, `server` puts it on a page."""
