"""Linux: processes, cgroups, namespaces and files of jobs; standard library only."""
