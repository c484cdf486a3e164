# SPDX-License-Identifier: Apache-2.0
"""A small virtual machine monitor on /dev/kvm whose guests can be migrated: the example for people who embed parmig.

``kvm_guest`` and ``options`` are in the engine's process. The rest runs in the VM's own process: ``kvm_monitor``
answers requests, ``machine`` is the VM, ``vcpu`` runs a virtual CPU and ``vcpu_state`` saves and loads it, ``irqchip``
and ``kvm_devices`` are the other parts, ``ram`` is the memory and ``dirty_recorder`` its dirty log, and ``code`` and
``programs`` make what runs in the guest. docs/embedding.md explains it. This file imports nothing, so that the process
starts quickly.
"""
