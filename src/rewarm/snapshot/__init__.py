"""Snapshots of micro-VMs on disk, and ways to wake them fast. What the VMM does with them is the room `vmm`.

How one is made, in `folder`, which nobody else knows yet:

    the VMM leaves `state` and `memory`          a booted guest; its freed pages are zero
    holes.punch_zero_pages(memory)               zero pages take no disk and no reading
    write_manifest(folder, describe(folder, …))  a snapshot that can be restored
    plan(snapshot, "lazy-4k", …), samples run    several times, each in a VM restored anew
    record.touched_pages(pid, memory)            after each; their union is the working set
    loading.write_loading_set(folder, touched)   → `loading-set` and `layout`
    write_manifest(folder, manifest.with_loading(folder, loading))
"""
