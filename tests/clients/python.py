"""What programs on the Python client do, against the API server that KUBECONFIG names."""

import base64
import threading

from kubernetes import __version__, client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock

NAMESPACE = "python"
PATIENCE = 30


def fails(status, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except ApiException as error:
        assert error.status == status, f"{error.status} instead of {status}: {error.body}"
        return error
    raise AssertionError(f"{call.__name__} was to fail with {status}")


def config_map(name, **data):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"ours": ""}), data=data)


def objects(core):
    made = core.create_namespaced_config_map(NAMESPACE, config_map("one", a="1"))
    fails(409, core.create_namespaced_config_map, NAMESPACE, config_map("one"))
    fails(404, core.read_namespaced_config_map, "none", NAMESPACE)
    core.patch_namespaced_config_map("one", NAMESPACE, {"data": {"b": "2"}})
    fails(409, core.replace_namespaced_config_map, "one", NAMESPACE, made)
    now = core.read_namespaced_config_map("one", NAMESPACE)
    assert now.data == {"a": "1", "b": "2"}, now.data
    now.data = {"c": "3"}
    assert core.replace_namespaced_config_map("one", NAMESPACE, now).data == {"c": "3"}
    patched = core.patch_namespaced_config_map("one", NAMESPACE, [{"op": "add", "path": "/data/d", "value": "4"}])
    assert patched.data == {"c": "3", "d": "4"}, patched.data
    for number in range(7):
        core.create_namespaced_config_map(NAMESPACE, config_map(f"page-{number}"))
    names, token = [], None
    while token != "":
        page = core.list_namespaced_config_map(NAMESPACE, limit=3, _continue=token, label_selector="ours")
        names += [it.metadata.name for it in page.items]
        token = page.metadata._continue or ""
    assert len(names) == 8, names
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="ours")
    assert not core.list_namespaced_config_map(NAMESPACE, label_selector="ours").items
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name="s"), string_data={"key": "value"})
    core.create_namespaced_secret(NAMESPACE, secret)
    assert base64.b64decode(core.read_namespaced_secret("s", NAMESPACE).data["key"]) == b"value"


def watches(core):
    begun = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    core.create_namespaced_config_map(NAMESPACE, config_map("seen", a="1"))
    core.patch_namespaced_config_map("seen", NAMESPACE, {"data": {"a": "2"}})
    core.delete_namespaced_config_map("seen", NAMESPACE)
    seen, it = [], watch.Watch()
    for event in it.stream(core.list_namespaced_config_map, NAMESPACE, resource_version=begun, timeout_seconds=PATIENCE):
        seen.append((event["type"], event["object"].metadata.name))
        if event["type"] == "DELETED":
            it.stop()
    assert seen == [("ADDED", "seen"), ("MODIFIED", "seen"), ("DELETED", "seen")], seen


def dynamically(api):
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "toys.python.example.com"},
        "spec": {"group": "python.example.com", "scope": "Namespaced", "names": {"plural": "toys", "kind": "Toy"},
                 "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
                     "type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}}}}]}}
    extensions = client.ApiextensionsV1Api(api)
    extensions.create_custom_resource_definition(definition)
    it = watch.Watch()
    name = "metadata.name=toys.python.example.com"
    for event in it.stream(extensions.list_custom_resource_definition, field_selector=name, timeout_seconds=PATIENCE):
        conditions = event["object"].status.conditions or []
        if any(it.type == "Established" and it.status == "True" for it in conditions):
            it.stop()
    toys = dynamic.DynamicClient(api).resources.get(api_version="python.example.com/v1", kind="Toy")
    toy = {"apiVersion": "python.example.com/v1", "kind": "Toy", "metadata": {"name": "t"}, "spec": {"size": 1}}
    toys.create(body=toy, namespace=NAMESPACE)
    fails(422, toys.create, body={**toy, "metadata": {"name": "u"}, "spec": {"size": "large"}}, namespace=NAMESPACE)
    applied = toys.server_side_apply(body={**toy, "spec": {"size": 2}}, namespace=NAMESPACE, name="t",
                                     field_manager="python", force_conflicts=True)
    assert applied.spec.size == 2, applied
    custom = client.CustomObjectsApi(api)
    assert len(custom.list_namespaced_custom_object("python.example.com", "v1", NAMESPACE, "toys")["items"]) == 1
    toys.delete(name="t", namespace=NAMESPACE)
    extensions.delete_custom_resource_definition("toys.python.example.com")


def from_yaml(api):
    labels = {"app": "web"}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": NAMESPACE},
                  "spec": {"selector": {"matchLabels": labels}, "template": {
                      "metadata": {"labels": labels}, "spec": {"containers": [{"name": "web", "image": "web:1"}]}}}}
    utils.create_from_dict(api, deployment)
    apps = client.AppsV1Api(api)
    apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 4}})
    assert apps.read_namespaced_deployment_scale("web", NAMESPACE).spec.replicas == 4
    apps.delete_namespaced_deployment("web", NAMESPACE, propagation_policy="Foreground")


def leads():
    led = threading.Event()
    lock = ConfigMapLock("leader", NAMESPACE, "me")
    it = electionconfig.Config(lock, lease_duration=17, renew_deadline=15, retry_period=5,
                               onstarted_leading=led.set, onstopped_leading=None)
    threading.Thread(target=leaderelection.LeaderElection(it).run, daemon=True).start()
    assert led.wait(PATIENCE), "nobody leads"


def main():
    config.load_kube_config()
    api = client.ApiClient()
    core = client.CoreV1Api(api)
    assert client.VersionApi(api).get_code().major == "1"
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
    for name, story in [
        ("objects", lambda: objects(core)), ("watches", lambda: watches(core)), ("dynamic client", lambda: dynamically(api)),
        ("manifests", lambda: from_yaml(api)), ("leader election", leads),
    ]:
        story()
        print(f"python {__version__}: {name}: ok", flush=True)
    core.delete_namespace(NAMESPACE)


main()
