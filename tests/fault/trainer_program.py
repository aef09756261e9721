"""A small real program in the trainer's place: reports over HTTP under the attempt's token, uploads, ends as planned.

The plan travels in the config's `modelspec_comment`: a list of endings, one for each attempt (the last one repeats).
Standard library only; it is started anew for each attempt.
"""

import stat
from pathlib import Path

PROGRAM = r'''#!/usr/bin/env -S python3 -S -E
import hashlib, http.client, json, os, signal, sys, time, urllib.parse

given = dict(zip(sys.argv[4::2], sys.argv[5::2]))
spec = json.load(open(given["--spec"]))
plans = json.loads(spec["config"]["--modelspec_comment"])
plan = plans[min(spec["attempt_number"], len(plans)) - 1]
origin = urllib.parse.urlsplit(spec["gateway_url"])
DEADLINE = time.monotonic() + 120
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
seq = 0
link = None

def token():
    return open(given["--token-file"]).read().strip()

def request(method, path, body=b"", **headers):
    """The answer, however often it takes; 409 attempt_superseded ends the program."""
    global link
    pause = 0.02
    while time.monotonic() < DEADLINE:
        try:
            if link is None:
                link = http.client.HTTPConnection(origin.hostname, origin.port, timeout=20)
            link.request(method, path, body, {"Authorization": "Bearer " + token(), **headers})
            answer = link.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            link.close()
            link = None
            print(method, path, repr(error), flush=True)
        else:
            if answer.status < 300:
                return data
            print(method, path, answer.status, data[:300], flush=True)
            if answer.status == 409 and b"attempt_superseded" in data:
                sys.exit(77)
            if 400 <= answer.status < 500 and answer.status not in (401, 403, 404, 408, 409, 425, 429):
                sys.exit(70)
        time.sleep(pause)
        pause = min(pause * 2, 0.5)
    sys.exit(69)

def report(type_, **data):
    global seq
    seq += 1
    line = {"v": 1, "job": spec["job_id"], "attempt": spec["attempt_id"], "seq": seq,
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + ".%06dZ" % (time.time() % 1 * 1e6),
            "type": type_, "data": data}
    request("POST", "/api/v1/attempts/" + spec["attempt_id"] + "/events", json.dumps(line).encode() + b"\n",
            **{"Content-Type": "application/x-ndjson"})

def upload(name, content):
    key = spec["output_prefix"].strip("/") + "/" + name
    digest = hashlib.sha256(content).hexdigest()
    request("PUT", "/api/cloud/storage/" + spec["output_bucket"] + "/" + key, content,
            **{"X-Upload-Token": token(), "X-Content-SHA256": digest, "Content-Type": "application/octet-stream"})
    return {"name": name, "object_key": key, "sha256": digest, "size_bytes": len(content)}

def fetch(ref):
    got = request("GET", ref["url"])
    if hashlib.sha256(got).hexdigest() != ref["sha256"]:
        report("failed", kind="bad_data", message="what was fetched has another digest", advice=None)
        sys.exit(65)

report("hello", trainer_version="fault", torch_version="none", device="cpu", ignored_keys=[], config={})
for ref in spec["datasets"]:
    fetch(ref)
first = 0
if spec.get("resume"):
    first = spec["resume"]["step"]
    for ref in spec["resume"]["files"]:
        fetch(ref)
report("metrics", step=first + 1, total_steps=10, loss=0.5, lr=0.1)
if plan.get("checkpoint"):
    step = first + 5
    content = (spec["job_id"] + "-%d" % step).encode() * 300
    report("checkpoint", step=step, files=[upload("checkpoint-%d/weights" % step, content)])
if plan["end"] in ("wait", "finish_when_asked"):
    while not asked and time.monotonic() < DEADLINE:
        time.sleep(0.02)
if plan["end"] == "preempted" or (asked and plan["end"] != "finish_when_asked"):
    report("failed", kind="preempted", message="told to stop", advice=None)
    sys.exit(75)
if plan["end"] == "vanish":
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
if plan["end"] == "bad_data":
    report("failed", kind="bad_data", message="as planned", advice="none")
    sys.exit(65)
if plan["end"] == "gpu_fault":
    report("gpu_fault", kind="ecc", gpu="0", detail="as planned", step=first + 5)
    report("failed", kind="gpu_fault", message="as planned", advice=None)
    sys.exit(74)
if plan["end"] == "silent":
    sys.exit(65)
model = upload("pytorch_lora_weights.safetensors", (spec["attempt_id"] * 2000).encode())
report("artifact", content_type="application/octet-stream", **model)
if plan.get("deliver"):
    report("delivery", target="hub:ann/digits", what="results", status="delivered", url=None, files=[model["name"]])
    report("delivery", target="s3:backup", what="results", status="failed", message="as planned", files=[model["name"]])
report("done", steps=first + 10, final_loss=0.25, artifacts=[model], undelivered=[])
'''


def install(folder: Path) -> Path:
    """Writes the program; its path goes where BRIDGE_TRAINER_PYTHON goes."""
    path = folder / "fault-trainer"
    path.write_text(PROGRAM, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
