# cells on the V1 runner, each run on record as soon as it is over; arguments: revision, seconds after which no run begins, seconds after which it is killed, limit of a run, repeats, cells
R=$1; S=$2; K=$3; L=$4; N=$5; shift 5; T=$(date +%s); mkdir -p /tmp/f /tmp/r; export PYTHONUNBUFFERED=1 VLLM_LOGGING_LEVEL=WARNING VLLM_USE_FLASHINFER_SAMPLER=0
say() { echo "[$(( $(date +%s) - T )) s] $*"; }
keep() { mkdir -p $OUT/r; cp /tmp/r/* $OUT/r/; }
[ -d /tmp/f/site0 ] || { (xz -T0 -dc .gpu/site.tar.xz 2>/dev/null | tar -x -C /tmp/f) || python3 -c "import tarfile; tarfile.open('.gpu/site.tar.xz').extractall('/tmp/f', filter='tar')"; }
say unpacked; nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.limit --format=csv,noheader; lscpu | grep 'Model name'
PYTHONPATH=$PWD python3 .gpu/gpu_machine.py > /tmp/r/machine.json 2>/tmp/r/machine.log; grep -E 'GB/s|TFLOP' /tmp/r/machine.json; say machine; keep
export PYTHONPATH=/tmp/f/site0:/tmp/f/dep:$PWD
timeout -k 5 $K python3 .gpu/gpu_cells.py $R /tmp/r/cells.jsonl $S $L $N "$@" >/tmp/r/cells.out 2>/tmp/r/cells.log; say cells $?; keep
cat /tmp/r/cells.out; tr '\r' '\n' < /tmp/r/cells.log | grep -v -E '^ *$|it/s|run/s' | tail -n 25 | cut -c 1-220
