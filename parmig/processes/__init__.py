# SPDX-License-Identifier: Apache-2.0
"""Starting processes of our own: workers, the guardian and spawned guests, always from a fork server.

A fork server is a process with one thread, no ZeroMQ context and no descriptor of ours. It has imported what it is to
run, so a new process costs a fork: milliseconds, and the memory of the imported code is shared. There are two kinds,
which behave alike:

- A command of ours forks it from itself right at its start (:func:`fork_server`). Nothing is imported twice.
- Any other program gets one in a fresh interpreter (:func:`warm_up`), because a fork would copy its threads' locks and
  all its memory.

The fork server ends with this process, and whatever it started ends with the fork server.

A signal to our process group (Ctrl-C, a lost terminal, a service manager's SIGTERM) is for this process alone to act
on: the fork server does not take those, and each process that it starts has a session of its own.
"""

from parmig.processes.child import KILLED_LIMIT_S, ChildProcess, describe_exit, end_process
from parmig.processes.start import fork_server, start_process, warm_up

__all__ = [
    "KILLED_LIMIT_S",
    "ChildProcess",
    "describe_exit",
    "end_process",
    "fork_server",
    "start_process",
    "warm_up",
]
