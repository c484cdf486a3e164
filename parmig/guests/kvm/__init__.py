# SPDX-License-Identifier: Apache-2.0
"""A small virtual machine monitor on /dev/kvm whose guests can be migrated; the example for those who embed parmig.

``guest`` and ``options`` are in the engine's process. The rest runs in the VM's own: ``monitor`` answers requests,
``machine`` is the VM, ``vcpu`` runs and ``vcpu_state`` moves a virtual CPU, ``irqchip`` and ``devices`` are its other
parts, ``ram`` and ``dirty`` memory and its dirty log, ``code`` and ``programs`` what runs in the guest;
docs/embedding.md walks through it. This file imports nothing, so that the process starts quickly.
"""
