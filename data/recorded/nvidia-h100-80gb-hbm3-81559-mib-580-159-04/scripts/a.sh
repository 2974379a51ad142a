# the kernels, then the V2 runner
R=1636088; T=$(date +%s); mkdir -p /tmp/f /tmp/r; export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD VLLM_LOGGING_LEVEL=WARNING VLLM_USE_FLASHINFER_SAMPLER=0
say() { echo "[$(( $(date +%s) - T )) s] $*"; }
keep() { tar -C /tmp -czf $OUT/rows.tgz --exclude='*.pdf' r; }
python3 -c "import tarfile; tarfile.open('.gpu/site.tar.xz').extractall('/tmp/f', filter='tar')" & U=$!
python3 .gpu/gpu_machine.py >/tmp/r/machine.json 2>/tmp/r/machine.log; say machine; grep -E 'GB/s|TFLOP' /tmp/r/machine.json
wait $U; say unpacked
timeout 60 python3 .gpu/with_revision.py $R -m benchmarks.decode_attention --check --json >/tmp/r/check.json 2>/tmp/r/check.log; say check $?; grep -o '"ok": [a-z]*' /tmp/r/check.json | sort | uniq -c
timeout 100 python3 .gpu/with_revision.py $R -m benchmarks.decode_attention --json --heads llama-3-8b --repeats 6 --rows /tmp/r/decode_attention-llama.csv.gz >/tmp/r/decode_attention-llama.json 2>/tmp/r/llama.log; say llama $?; tail -c 300 /tmp/r/llama.log; keep
timeout 100 python3 .gpu/with_revision.py $R -m benchmarks.decode_attention --json --heads longchat-13b --repeats 4 --rows /tmp/r/decode_attention-longchat.csv.gz >/tmp/r/decode_attention-longchat.json 2>/tmp/r/longchat.log; say longchat $?; tail -c 300 /tmp/r/longchat.log; keep
export PYTHONPATH=/tmp/f/site0:/tmp/f/dep:$PWD
timeout 60 python3 .gpu/with_revision.py $R .gpu/engine_attention.py --heads llama-3-8b --implementations fa3,torch --repeats 5 --rows /tmp/r/engine_attention-llama.csv.gz >/tmp/r/ea-llama.log 2>&1; say fa3 $?; tail -n 2 /tmp/r/ea-llama.log; keep
timeout 290 python3 .gpu/with_revision.py $R .gpu/gpu_steady.py --out /tmp/r/v2 --runner V2 --parts order --seconds 265 --options '{"cell_s":10.0}' >/tmp/r/v2.log 2>&1; say V2 $?; keep
grep -v it/s /tmp/r/v2.log | tail -n 40 | cut -c 1-260
