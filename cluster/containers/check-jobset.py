"""Holds JobSet manifests against the schema of their API, as models that its publishers generate from it.

The models alone would drop keys that they do not know, as a cluster that does not validate would. So what they read is written
again, and everything of the manifest must be there.

    check-jobset.py FILE..          exit code 1 with the first difference
"""

import sys

import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet


def first_lost(given, read, path):
    """The path of the first thing in `given` that `read` does not have."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key not in read:
                return f"{path}.{key}: unknown key"
            lost = first_lost(value, read[key], f"{path}.{key}")
            if lost:
                return lost
        return None
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        pairs = enumerate(zip(given, read))
        return next((lost for i, (a, b) in pairs if (lost := first_lost(a, b, f"{path}[{i}]"))), None)
    return None if given == read else f"{path}: {given!r} was read as {read!r}"


def main(files):
    for file in files:
        with open(file, encoding="utf-8") as text:
            given = yaml.safe_load(text)
        if (given.get("apiVersion"), given.get("kind")) != ("jobset.x-k8s.io/v1alpha2", "JobSet"):
            sys.exit(f"{file}: not a JobSet of jobset.x-k8s.io/v1alpha2")
        try:
            read = JobsetV1alpha2JobSet.from_dict(given).to_dict()
        except ValueError as error:
            sys.exit(f"{file}: {error}")
        lost = first_lost(given, read, "")
        if lost:
            sys.exit(f"{file}: {lost}")
        print(f"{file}: a valid JobSet")


if __name__ == "__main__":
    main(sys.argv[1:])
