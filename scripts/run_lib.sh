# Source this after lib.sh, with $repo set: what run_mrpc.sh and run_squad.sh begin with. Takes their first two
# arguments as $model_type and $data_type; $data is the folder of the acceptance data.
if [ $# -lt 2 ]; then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 1
fi
model_type=$1 data_type=$2
shift 2
data=${FT_TEST_DATA:-$repo/../shared/data}
