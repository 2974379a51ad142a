# the V2 runner: order of rows; arguments: revision, seconds after which no cell is begun, repeats
R=$1; T=$(date +%s); mkdir -p /tmp/r; export PYTHONUNBUFFERED=1 VLLM_LOGGING_LEVEL=WARNING VLLM_USE_FLASHINFER_SAMPLER=0 PYTHONPATH=/tmp/f/site0:/tmp/f/dep:$PWD
[ -d /tmp/f/site0 ] || { mkdir -p /tmp/f; python3 -c "import tarfile; tarfile.open('.gpu/site.tar.xz').extractall('/tmp/f', filter='tar')"; }
timeout $(($2 + 45)) python3 .gpu/gpu_benchmark.py $R /tmp/r/order.json --cells 'order of rows' --seconds $2 ${3:+--repeats $3} >/tmp/r/order.log 2>&1; echo "order $? after $(( $(date +%s) - T )) s"; cp -r /tmp/r $OUT/
tr '\r' '\n' < /tmp/r/order.log | grep -v -E '^ *$|it/s' | tail -n 25 | cut -c 1-220
python3 - <<'P'
import json
d=json.load(open("/tmp/r/order.json"))
for c in d["cells"]:
    print(c["workload"][:8], c["kernel"], c["arm"], f"{c['tok_s']:.0f} ±{100*c['ci_share']:.0f}% n={c['runs']} p99 {c['ttft_p99_s']:.2f} step {c['decode_step_ms']:.1f} ms rows {c['mean_batch']:.0f} like {c['like_neighbours']:.2f} queue {100*c['queue_share']:.1f}% settle {c['settle_s']:.1f}", c.get("learned",[{}])[-1].get("plan",""), c["each"])
P
