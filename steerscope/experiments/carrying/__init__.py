"""What carries work: this process, several that share a folder, or a Ray cluster.

Work comes as stages of jobs (``jobs``). A job leaves its result where every process finds it, under a name that all
give it, so that it does not matter who does it. ``shards`` shares jobs by claims in a folder (``claims``),
``ray_actors`` sends them to a cluster; without either they are done one after the other.
"""
