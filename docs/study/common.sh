# What the studies of docs/protocol.md share; sourced by their scripts, with $here set to this folder.
H="${H:-python -m hpc_isl.submit}"
ONE="site.cpus=1 ${SITE:-}"                    # one core for each run; sweeps fill all cores

run() {  # VERB NAME …: begun, resumed, or done
  if [ -d "runs/$1/$2" ]; then $H resume "$1/$2" $ONE; return; fi
  local verb=$1 name=$2; shift 2
  $H "$verb" "$@" --name "$name" $ONE
}

phase_nuclear() {  # DATA: the plate P.zarr of the 20 fields, with what people drew
  if [ ! -d P.zarr ]; then
    awk -F, 'BEGIN {print "image,cell_line"} NR > 1 {print $1 "," $2}' "$1/manifest.csv" > lines.csv
    $H convert source="$1" out=P.zarr reader=pattern plate_map=lines.csv \
      'pattern.regex=(?P<image>.+)_(?P<channel>phase|nuclear)\.tif' 'pattern.transmitted=[phase]'
  fi
  for labels in cells nuclei; do
    mkdir -p $labels && cp "$1"/labels/*_$labels.tif $labels/
    $H annotate import $labels plate=P.zarr labels=$labels "regex=(?P<image>.+)_$labels\.tif"
  done
}
