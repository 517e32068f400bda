"""Many workers: a pool for offline generation, and routed replicas for serving. The only package that imports Ray.

`work_list`, `affinity` and `dispatch` are pure; `cluster`, `pool`, `ray_replicas` and `ray_router` know Ray.
"""
