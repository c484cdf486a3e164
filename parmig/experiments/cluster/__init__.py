# SPDX-License-Identifier: Apache-2.0
"""Sweeps on many machines: each is a worker of a Dask cluster, and each run happens between two of them.

``dask_hosts`` and ``dask_task`` know Dask, which is in the extra ``cluster``. The rest does not.
"""
