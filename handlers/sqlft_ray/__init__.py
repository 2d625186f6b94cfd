"""The engine `ray`: any other handler's work, done by actors of a Ray cluster.

Called by the core through the entry point `ray`, and never constructed as it is: `Ray.wrap` makes a class of it and of
the handler that an engine names.  In come what any handler is given; out come the same answers, vectors and artifacts.

`handler` says what stays in this process and what goes out, `cluster` reaches Ray and puts its errors into words,
`pool` keeps actors and shares requests among them, `training` follows a training on a node.  `actor` and `files` run on
the nodes: a handler in an actor, and how folders get there.
"""

from sqlft_ray.handler import Ray

__all__ = ["Ray"]
