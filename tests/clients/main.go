// What programs on client-go do every day, against the API server that KUBECONFIG names.
package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	apps "k8s.io/api/apps/v1"
	authentication "k8s.io/api/authentication/v1"
	authorization "k8s.io/api/authorization/v1"
	autoscaling "k8s.io/api/autoscaling/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/pager"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/retry"
)

const patience = 30 * time.Second

var namespace = "clients"

func must[T any](value T, err error) T {
	try(err)
	return value
}

func try(err error) {
	if err != nil {
		panic(err)
	}
}

func check(holds bool, what string, values ...any) {
	if !holds {
		panic(fmt.Sprintf(what, values...))
	}
}

// next waits for one value.
func next[T any](from <-chan T, what string) T {
	select {
	case value := <-from:
		return value
	case <-time.After(patience):
		panic("waited in vain for " + what)
	}
}

type house struct {
	ctx    context.Context
	config *rest.Config
	typed  kubernetes.Interface
	loose  dynamic.Interface
}

func configMap(name string, data map[string]string) *core.ConfigMap {
	return &core.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
}

func (it *house) objects() {
	maps := it.typed.CoreV1().ConfigMaps(namespace)
	made := must(maps.Create(it.ctx, configMap("one", map[string]string{"n": "0"}), metav1.CreateOptions{}))
	_, err := maps.Create(it.ctx, configMap("one", nil), metav1.CreateOptions{})
	check(apierrors.IsAlreadyExists(err), "%v", err)
	_, err = maps.Get(it.ctx, "none", metav1.GetOptions{})
	check(apierrors.IsNotFound(err), "%v", err)
	_, err = maps.Create(it.ctx, configMap("Not A Name", nil), metav1.CreateOptions{})
	check(apierrors.IsInvalid(err), "%v", err)
	// Ten who count, each with his own retries.
	var all sync.WaitGroup
	failures := make(chan error, 10)
	for range 10 {
		all.Add(1)
		go func() {
			defer all.Done()
			backoff := retry.DefaultRetry
			backoff.Steps = 100
			failures <- retry.RetryOnConflict(backoff, func() error {
				now, err := maps.Get(it.ctx, "one", metav1.GetOptions{})
				if err != nil {
					return err
				}
				now.Data["n"] += "x"
				_, err = maps.Update(it.ctx, now, metav1.UpdateOptions{})
				return err
			})
		}()
	}
	all.Wait()
	for range 10 {
		try(<-failures)
	}
	now := must(maps.Get(it.ctx, "one", metav1.GetOptions{}))
	check(now.Data["n"] == "0xxxxxxxxxx", "%v", now.Data)
	stale := made.DeepCopy()
	_, err = maps.Update(it.ctx, stale, metav1.UpdateOptions{})
	check(apierrors.IsConflict(err), "%v", err)
	patched := must(maps.Patch(it.ctx, "one", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{}))
	check(patched.Labels["a"] == "b", "%v", patched.Labels)
	light := must(metadata.NewForConfig(it.config))
	bare := must(light.Resource(core.SchemeGroupVersion.WithResource("configmaps")).Namespace(namespace).Get(it.ctx, "one", metav1.GetOptions{}))
	check(bare.Labels["a"] == "b", "%v", bare.Labels)
	try(maps.DeleteCollection(it.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "a"}))
	_, err = maps.Get(it.ctx, "one", metav1.GetOptions{})
	check(apierrors.IsNotFound(err), "%v", err)
}

func (it *house) apply() {
	maps := it.typed.CoreV1().ConfigMaps(namespace)
	mine := applycore.ConfigMap("applied", namespace).WithData(map[string]string{"mine": "1"}).WithLabels(map[string]string{"a": "b"})
	first := must(maps.Apply(it.ctx, mine, metav1.ApplyOptions{FieldManager: "me"}))
	again := must(maps.Apply(it.ctx, mine, metav1.ApplyOptions{FieldManager: "me"}))
	check(first.ResourceVersion == again.ResourceVersion, "applied again, it was written again")
	other := applycore.ConfigMap("applied", namespace).WithData(map[string]string{"mine": "2"})
	_, err := maps.Apply(it.ctx, other, metav1.ApplyOptions{FieldManager: "you"})
	check(apierrors.IsConflict(err), "%v", err)
	must(maps.Apply(it.ctx, other, metav1.ApplyOptions{FieldManager: "you", Force: true}))
	extracted := must(applycore.ExtractConfigMap(must(maps.Get(it.ctx, "applied", metav1.GetOptions{})), "me"))
	check(len(extracted.Data) == 0 && extracted.Labels["a"] == "b", "%v", extracted)
	left := must(maps.Apply(it.ctx, applycore.ConfigMap("applied", namespace), metav1.ApplyOptions{FieldManager: "me"}))
	check(len(left.Labels) == 0 && left.Data["mine"] == "2", "%v", left)
}

func (it *house) informer() {
	maps := it.typed.CoreV1().ConfigMaps(namespace)
	must(maps.Create(it.ctx, configMap("before", nil), metav1.CreateOptions{}))
	ctx, stop := context.WithCancel(it.ctx)
	defer stop()
	factory := informers.NewSharedInformerFactoryWithOptions(it.typed, 0, informers.WithNamespace(namespace))
	lister := factory.Core().V1().ConfigMaps().Lister()
	seen := make(chan string, 100)
	must(factory.Core().V1().ConfigMaps().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { seen <- "+" + object.(*core.ConfigMap).Name },
		UpdateFunc: func(_, object any) { seen <- "~" + object.(*core.ConfigMap).Name },
		DeleteFunc: func(object any) { seen <- "-" + object.(*core.ConfigMap).Name },
	}))
	factory.Start(ctx.Done())
	for _, synced := range factory.WaitForCacheSync(ctx.Done()) {
		check(synced, "the informer has no state")
	}
	must(lister.ConfigMaps(namespace).Get("before"))
	must(maps.Create(it.ctx, configMap("later", nil), metav1.CreateOptions{}))
	must(maps.Patch(it.ctx, "later", types.MergePatchType, []byte(`{"data":{"a":"b"}}`), metav1.PatchOptions{}))
	try(maps.Delete(it.ctx, "later", metav1.DeleteOptions{}))
	for _, wanted := range []string{"+later", "~later", "-later"} {
		for next(seen, wanted) != wanted {
		}
	}
}

func (it *house) pages() {
	maps := it.typed.CoreV1().ConfigMaps(namespace)
	for number := range 25 {
		object := configMap(fmt.Sprintf("page-%02d", number), nil)
		object.Labels = map[string]string{"paged": ""}
		must(maps.Create(it.ctx, object, metav1.CreateOptions{}))
	}
	lists := pager.New(pager.SimplePageFunc(func(options metav1.ListOptions) (runtime.Object, error) { return maps.List(it.ctx, options) }))
	lists.PageSize = 10
	found := 0
	try(lists.EachListItem(it.ctx, metav1.ListOptions{LabelSelector: "paged"}, func(runtime.Object) error { found++; return nil }))
	check(found == 25, "%d of 25", found)
}

func (it *house) elect() {
	leads := make(chan string, 2)
	run := func(ctx context.Context, name string) chan struct{} {
		done := make(chan struct{})
		lock := &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Name: "leader", Namespace: namespace},
			Client:     it.typed.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: name},
		}
		go func() {
			defer close(done)
			leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
				Lock: lock, ReleaseOnCancel: true,
				LeaseDuration: 3 * time.Second, RenewDeadline: 2 * time.Second, RetryPeriod: 200 * time.Millisecond,
				Callbacks: leaderelection.LeaderCallbacks{
					OnStartedLeading: func(ctx context.Context) { leads <- name; <-ctx.Done() },
					OnStoppedLeading: func() {},
				},
			})
		}()
		return done
	}
	one, resign := context.WithCancel(it.ctx)
	first := run(one, "one")
	check(next(leads, "a leader") == "one", "another leads")
	two, stop := context.WithCancel(it.ctx)
	second := run(two, "two")
	resign()
	next(first, "the end of the first")
	check(next(leads, "the next leader") == "two", "another leads")
	stop()
	next(second, "the end of the second")
}

func (it *house) custom() {
	definitions := it.loose.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	definition := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "gadgets.clients.example.com"},
		"spec": map[string]any{"group": "clients.example.com", "scope": "Namespaced",
			"names": map[string]any{"plural": "gadgets", "kind": "Gadget"},
			"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true,
				"subresources": map[string]any{"status": map[string]any{}},
				"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "properties": map[string]any{
					"spec":   map[string]any{"type": "object", "properties": map[string]any{"size": map[string]any{"type": "integer", "default": int64(3), "maximum": int64(9)}}},
					"status": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}}}}}
	must(definitions.Create(it.ctx, definition, metav1.CreateOptions{}))
	watcher := must(definitions.Watch(it.ctx, metav1.ListOptions{FieldSelector: "metadata.name=gadgets.clients.example.com"}))
	for established := false; !established; {
		event := next(watcher.ResultChan(), "an established definition")
		conditions, _, _ := unstructured.NestedSlice(event.Object.(*unstructured.Unstructured).Object, "status", "conditions")
		for _, condition := range conditions {
			one := condition.(map[string]any)
			established = established || one["type"] == "Established" && one["status"] == "True"
		}
	}
	watcher.Stop()
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(it.typed.Discovery()))
	mapping := must(mapper.RESTMapping(schema.GroupKind{Group: "clients.example.com", Kind: "Gadget"}))
	check(mapping.Scope.Name() == meta.RESTScopeNameNamespace, "%v", mapping.Scope)
	gadgets := it.loose.Resource(mapping.Resource).Namespace(namespace)
	seen := make(chan watch.EventType, 10)
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(it.loose, 0, namespace, nil)
	must(factory.ForResource(mapping.Resource).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { seen <- watch.Added }, UpdateFunc: func(_, _ any) { seen <- watch.Modified }, DeleteFunc: func(any) { seen <- watch.Deleted },
	}))
	ctx, stop := context.WithCancel(it.ctx)
	defer stop()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	gadget := func(spec map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "clients.example.com/v1", "kind": "Gadget", "metadata": map[string]any{"name": "g"}, "spec": spec}}
	}
	_, err := gadgets.Create(it.ctx, gadget(map[string]any{"size": int64(10)}), metav1.CreateOptions{})
	check(apierrors.IsInvalid(err), "%v", err)
	made := must(gadgets.Create(it.ctx, gadget(map[string]any{}), metav1.CreateOptions{}))
	size, _, _ := unstructured.NestedInt64(made.Object, "spec", "size")
	check(size == 3, "%v", made.Object)
	try(unstructured.SetNestedField(made.Object, "well", "status", "mood"))
	must(gadgets.UpdateStatus(it.ctx, made, metav1.UpdateOptions{}))
	try(gadgets.Delete(it.ctx, "g", metav1.DeleteOptions{}))
	for _, wanted := range []watch.EventType{watch.Added, watch.Modified, watch.Deleted} {
		got := next(seen, string(wanted))
		check(got == wanted, "%v instead of %v", got, wanted)
	}
	stop()
	try(definitions.Delete(it.ctx, "gadgets.clients.example.com", metav1.DeleteOptions{}))
}

func (it *house) workloads() {
	labels := map[string]string{"app": "web"}
	replicas := int32(2)
	deployment := &apps.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: apps.DeploymentSpec{Replicas: &replicas,
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: core.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: core.PodSpec{Containers: []core.Container{{Name: "web", Image: "web:1"}}}}}}
	deployments := it.typed.AppsV1().Deployments(namespace)
	must(deployments.Create(it.ctx, deployment, metav1.CreateOptions{}))
	scale := must(deployments.GetScale(it.ctx, "web", metav1.GetOptions{}))
	scale.Spec = autoscaling.ScaleSpec{Replicas: 5}
	// Controllers may be at work on it.
	scale.ResourceVersion = ""
	must(deployments.UpdateScale(it.ctx, "web", scale, metav1.UpdateOptions{}))
	now := must(deployments.Get(it.ctx, "web", metav1.GetOptions{}))
	check(*now.Spec.Replicas == 5 && now.Generation == 2, "%v", now)
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: it.typed.CoreV1().Events(namespace)})
	defer broadcaster.Shutdown()
	events := must(it.typed.CoreV1().Events(namespace).Watch(it.ctx, metav1.ListOptions{FieldSelector: "reason=Tried"}))
	defer events.Stop()
	broadcaster.NewRecorder(scheme.Scheme, core.EventSource{Component: "clients"}).Event(now, core.EventTypeNormal, "Tried", "it works")
	event := next(events.ResultChan(), "an event").Object.(*core.Event)
	check(event.InvolvedObject.UID == now.UID, "%v", event)
}

func (it *house) access() {
	accounts := it.typed.CoreV1().ServiceAccounts(namespace)
	must(accounts.Create(it.ctx, &core.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{}))
	token := must(accounts.CreateToken(it.ctx, "robot", &authentication.TokenRequest{}, metav1.CreateOptions{}))
	config := rest.AnonymousClientConfig(it.config)
	config.BearerToken = token.Status.Token
	robot := must(kubernetes.NewForConfig(config))
	me := must(robot.AuthenticationV1().SelfSubjectReviews().Create(it.ctx, &authentication.SelfSubjectReview{}, metav1.CreateOptions{}))
	check(me.Status.UserInfo.Username == "system:serviceaccount:"+namespace+":robot", "%v", me.Status)
	_, err := robot.CoreV1().Secrets(namespace).List(it.ctx, metav1.ListOptions{})
	check(apierrors.IsForbidden(err), "%v", err)
	review := &authorization.SelfSubjectAccessReview{Spec: authorization.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorization.ResourceAttributes{Namespace: namespace, Verb: "list", Resource: "secrets"}}}
	answer := must(robot.AuthorizationV1().SelfSubjectAccessReviews().Create(it.ctx, review, metav1.CreateOptions{}))
	check(!answer.Status.Allowed, "%v", answer.Status)
}

func (it *house) documents() {
	_, lists, err := it.typed.Discovery().ServerGroupsAndResources()
	try(err)
	check(len(lists) > 15, "%d groups", len(lists))
	paths := must(it.typed.Discovery().OpenAPIV3().Paths())
	document := must(paths["apis/apps/v1"].Schema("application/com.github.proto-openapi.spec.v3@v1.0+protobuf"))
	check(len(document) > 1000, "%d bytes", len(document))
	must(it.typed.Discovery().OpenAPISchema())
}

func main() {
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Minute)
	defer stop()
	config := must(clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG")))
	config.QPS, config.Burst = 1000, 1000
	if len(os.Args) > 1 {
		namespace += "-" + os.Args[1]
	}
	if len(os.Args) > 1 && os.Args[1] == "protobuf" {
		config.ContentType = "application/vnd.kubernetes.protobuf"
		config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	}
	loose := rest.CopyConfig(config)
	loose.ContentType, loose.AcceptContentTypes = "", ""
	it := &house{ctx: ctx, config: config, typed: must(kubernetes.NewForConfig(config)), loose: must(dynamic.NewForConfig(loose))}
	must(it.typed.CoreV1().Namespaces().Create(ctx, &core.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}))
	for _, story := range []struct {
		name string
		tell func()
	}{
		{"objects", it.objects}, {"apply", it.apply}, {"informer", it.informer}, {"pages", it.pages}, {"leader election", it.elect},
		{"custom resources", it.custom}, {"workloads", it.workloads}, {"access", it.access}, {"documents", it.documents},
	} {
		begun := time.Now()
		func() {
			defer func() {
				if why := recover(); why != nil {
					fmt.Printf("client-go: %s: %v\n", story.name, why)
					os.Exit(1)
				}
			}()
			story.tell()
		}()
		fmt.Printf("client-go: %s: ok (%d ms)\n", story.name, time.Since(begun).Milliseconds())
	}
	try(it.typed.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{}))
}
