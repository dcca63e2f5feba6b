#!/usr/bin/env bash
# A morning with kubectl. KUBECONFIG names the server; the argument is kubectl.
set -euo pipefail
kubectl=$1
version=$("$kubectl" version --client -o json 2>/dev/null | python3 -c 'import json,sys;print(json.load(sys.stdin)["clientVersion"]["gitVersion"])')
trap 'echo "kubectl $version: line $LINENO failed" >&2' ERR
n=kubectl-$(tr -c 'a-z0-9\n' - <<< "$version")
k() { "$kubectl" -n "$n" "$@" 2>&1; }
has() { grep -qF -- "$1" <<< "$2" || { echo "kubectl $version: no '$1' in: $2" >&2; exit 1; }; }

"$kubectl" create namespace "$n" >/dev/null
has "configmap/a created" "$(k create configmap a --from-literal=k=v)"
has "deployment.apps/web created" "$(k create deployment web --image=web:1 --replicas=2)"
has "service/web exposed" "$(k expose deployment web --port=80)"
has "deployment.apps/web scaled" "$(k scale deployment web --replicas=3)"
has "deployment.apps/web image updated" "$(k set image deployment/web web=web:2)"
has "3" "$(k get deployment web -o 'jsonpath={.spec.replicas}')"
has "web:2" "$(k describe deployment web)"
has "configmap/a labeled" "$(k label configmap a x=y)"
has "configmap/a annotate" "$(k annotate configmap a why=because)"
has "configmap/a patched" "$(k patch configmap a -p '{"data":{"l":"w"}}')"
has "NAME" "$(k get configmaps,deployments,services -o wide --show-labels)"
has "name: a" "$(k get configmaps -l x=y -o yaml --show-managed-fields)"
manifest='{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"k":"%s"}}'
has "configmap/b created" "$(printf "$manifest" 1 | k apply -f -)"
has "configmap/b unchanged" "$(printf "$manifest" 1 | k apply -f -)"
has '+  k: "2"' "$(printf "$manifest" 2 | k diff -f - || true)"
has "configmap/b configured" "$(printf "$manifest" 2 | k apply -f -)"
has "configmap/b serverside-applied" "$(printf "$manifest" 3 | k apply -f - --server-side --force-conflicts)"
has "configmap/b replaced (server dry run)" "$(printf "$manifest" 4 | k replace --dry-run=server -f -)"
has 'unknown field "dta"' "$(printf '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"dta":{}}' | k apply -f - || true)"
has "FIELDS:" "$(k explain deployment.spec.strategy)"
has "yes" "$(k auth can-i create pods)"
has "no" "$(k auth can-i create pods --as=nobody || true)"
has "configmaps" "$(k api-resources)"
has "apps/v1" "$(k api-versions)"
k wait --for=jsonpath='{.data.k}'=3 configmap/b --timeout=30s >/dev/null
has "token" "$(k create token default | sed 's/^ey.*/token/')"
has "role.rbac.authorization.k8s.io/r created" "$(k create role r --verb=get --resource=pods)"
has "rolebinding.rbac.authorization.k8s.io/b created" "$(k create rolebinding b --role=r --serviceaccount="$n":default)"
has "yes" "$(k auth can-i get pods --as="system:serviceaccount:$n:default")"
has "job.batch/j created" "$(k create job j --image=a)"
has "cronjob.batch/c created" "$(k create cronjob c --image=a --schedule='* * * * *')"
has "SuccessfulCreate" "$(k get events)"
has "deployment.apps/web restarted" "$(k rollout restart deployment web)"
has 'configmap "a" deleted' "$(k delete configmap a)"
"$kubectl" delete namespace "$n" --timeout=60s >/dev/null
echo "kubectl $version: ok"
