#!/usr/bin/env bash
# A chart's life: installed, upgraded, rolled back, gone. KUBECONFIG names the server; the argument is Helm.
set -euo pipefail
helm=$1
chart=$(dirname "$0")/chart
greeting() { kubectl get configmap greeting -n charts -o "jsonpath={.data.greeting} {.data.before} {.data.policies}"; }
is() { [ "$1" = "$2" ] || { echo "helm: '$1' instead of '$2'" >&2; exit 1; }; }

"$helm" install web "$chart" -n charts --create-namespace >/dev/null
is "$(greeting)" "hello  true"
is "$(kubectl get things thing -n charts -o 'jsonpath={.spec.size}')" 1
kubectl scale deployment web -n charts --replicas=7 >/dev/null
"$helm" upgrade web "$chart" -n charts --set greeting=welcome --dry-run=server >/dev/null
is "$(greeting)" "hello  true"
"$helm" upgrade web "$chart" -n charts --set greeting=welcome >/dev/null
is "$(greeting)" "welcome hello true"
# What was changed behind the chart's back is as the chart says.
is "$(kubectl get deployment web -n charts -o 'jsonpath={.spec.replicas}')" 1
if "$helm" upgrade web "$chart" -n charts --set replicas=-1 2>/dev/null; then
  echo "helm: a Deployment of less than nothing was taken" >&2
  exit 1
fi
"$helm" rollback web 1 -n charts >/dev/null
is "$(greeting)" "hello  true"
is "$("$helm" history web -n charts -o json | python3 -c 'import json,sys;print(*[it["status"] for it in json.load(sys.stdin)])')" \
  "superseded superseded failed deployed"
"$helm" uninstall web -n charts --wait --cascade foreground --timeout 60s >/dev/null
is "$(kubectl get configmaps,secrets,services,deployments,roles -n charts -o name | grep -v kube-root-ca)" ""
kubectl delete namespace charts --timeout 60s >/dev/null
echo "helm: ok"
