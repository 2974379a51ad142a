# the V1 runner: stopping, both kernels; arguments: revision, seconds after which no cell is begun, seconds after which it is killed
R=$1; T=$(date +%s); mkdir -p /tmp/f /tmp/r; export PYTHONUNBUFFERED=1 VLLM_LOGGING_LEVEL=WARNING VLLM_USE_FLASHINFER_SAMPLER=0
say() { echo "[$(( $(date +%s) - T )) s] $*"; }
keep() { cp -r /tmp/r $OUT/; }
[ -d /tmp/f/site0 ] || { (xz -T0 -dc .gpu/site.tar.xz 2>/dev/null | tar -x -C /tmp/f) || python3 -c "import tarfile; tarfile.open('.gpu/site.tar.xz').extractall('/tmp/f', filter='tar')"; }
say unpacked; nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.limit --format=csv,noheader; lscpu | grep 'Model name'
export PYTHONPATH=/tmp/f/site0:/tmp/f/dep:$PWD
python3 -c "
import vllm, vllm.entrypoints.llm, vllm.platforms.cuda, vllm.v1.attention.backends.flash_attn, vllm.vllm_flash_attn
from vllm.platforms import current_platform as c; print(vllm.__version__, c, c.is_cuda())
import torch, triton, transformers; print(torch.__version__, torch.version.cuda, triton.__version__, transformers.__version__)
import lab.engines.real, benchmarks.steady, feather.vllm.attention" 2>&1 | tail -5; say imported
PYTHONPATH=$PWD python3 .gpu/gpu_machine.py > /tmp/r/machine.json 2>/tmp/r/machine.log; grep -E 'GB/s|TFLOP' /tmp/r/machine.json; say machine; keep
timeout ${3:-470} python3 .gpu/gpu_benchmark.py $R /tmp/r/stopping.json --cells stopping --repeats 2 --seconds $2 >/tmp/r/stopping.log 2>&1; say stopping $?; keep
tr '\r' '\n' < /tmp/r/stopping.log | grep -v -E '^ *$|it/s' | tail -n 25 | cut -c 1-220
python3 - <<'P'
import json
try: d=json.load(open("/tmp/r/stopping.json"))
except Exception as e: print(e); raise SystemExit
for c in sorted(d["cells"], key=lambda c: (c["workload"], c["kernel"], c["arm"])):
    print(c["workload"][:8], c["kernel"], c["arm"], f"{c['tok_s']:.0f} ±{100*c['ci_share']:.0f}% n={c['runs']} p99 {c['ttft_p99_s']:.2f} step {c['decode_step_ms']:.1f} ms rows {c['mean_batch']:.0f} groups {c['groups_per_batch']:.1f} casc {c['cascade_share']:.2f} queue {100*c['queue_share']:.1f}% settle {c['settle_s']:.1f}", c.get("learned",[{}])[-1].get("plan",""))
P
