# the V1 runner; SECONDS_ and PARTS from the environment
R=1636088; mkdir -p /tmp/r; export PYTHONUNBUFFERED=1 VLLM_LOGGING_LEVEL=WARNING VLLM_USE_FLASHINFER_SAMPLER=0
[ -d /tmp/f/site0 ] || { mkdir -p /tmp/f; python3 -c "import tarfile; tarfile.open('.gpu/site.tar.xz').extractall('/tmp/f', filter='tar')"; }
export PYTHONPATH=/tmp/f/site0:/tmp/f/dep:$PWD
timeout $((${S:-300} + 20)) python3 .gpu/with_revision.py $R .gpu/gpu_steady.py --out /tmp/r/${NAME:-v1} --runner ${RUNNER:-V1} --parts ${PARTS:-arms,strangers,rate} --seconds ${S:-300} --options "${O:-{\}}" >/tmp/r/${NAME:-v1}.log 2>&1; echo rc $?
tar -C /tmp -czf $OUT/rows.tgz --exclude='*.pdf' r
grep -v it/s /tmp/r/${NAME:-v1}.log | tail -n 50 | cut -c 1-260
