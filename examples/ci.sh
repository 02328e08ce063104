#!/usr/bin/env bash
# Push the bento that a CI job built, and print the result. Set BENTO_CLOUD_API_ENDPOINT and BENTO_CLOUD_API_KEY as secrets
# of the job. If the registry cannot be reached, the script retries once.
#
#     examples/ci.sh iris_classifier:v3
set -euo pipefail
bento=$1

code=0
result=$(async-bento push "$bento" --json) || code=$?
case $code in
  0) ;;
  3) echo "There is no $bento. Run the build step first." >&2; exit 3 ;;
  4) echo "The registry does not accept the token of this job." >&2; exit 4 ;;
  5) echo "The registry cannot be reached. Retrying in a minute." >&2
     sleep "${PATIENCE:-60}"
     result=$(async-bento push "$bento" --json) ;; # resumes
  *) exit "$code" ;;
esac

python - "$result" <<'PYTHON'
import json
import sys

result = json.loads(sys.argv[1])
if result["skipped"]:
    print(f"{result['tag']} is already pushed")
else:
    print(f"{result['tag']}: {result['bytes_sent']} bytes in {result['seconds']:.1f} s")
PYTHON
