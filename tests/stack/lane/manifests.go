// Command manifests builds a kustomization as `kubectl apply -k` does, with the library that kubectl
// has for it, and does to every object what the API server does before it stores one: strict
// decoding, defaults, validation; warnings count as mistakes. Pods must keep to the restricted Pod
// Security Standard. The objects are on standard output, what is wrong with them on standard error.
// Neither a cluster nor a network is needed.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/apps/statefulset"
	"k8s.io/kubernetes/pkg/registry/batch/job"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget"
	security "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// strategies are what the API server creates objects with. A kind that is not here is a mistake.
var strategies = map[schema.GroupKind]rest.RESTCreateStrategy{
	{Kind: "ConfigMap"}: configmap.Strategy,
	{Kind: "Namespace"}: namespace.Strategy,
	{Kind: "Service"}:   service.Strategy,

	{Group: "apps", Kind: "Deployment"}:                 deployment.Strategy,
	{Group: "apps", Kind: "StatefulSet"}:                statefulset.Strategy,
	{Group: "batch", Kind: "Job"}:                       job.Strategy,
	{Group: "networking.k8s.io", Kind: "NetworkPolicy"}: networkpolicy.Strategy,
	{Group: "policy", Kind: "PodDisruptionBudget"}:      poddisruptionbudget.Strategy,
}

func main() {
	text, err := build(os.Args[1])
	if err == nil {
		_, _ = os.Stdout.Write(text)
		err = check(text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// build returns what a kustomization makes, in kubectl's order. As with kubectl, no file outside of a
// kustomization's own folder may be read.
func build(folder string) ([]byte, error) {
	options := krusty.MakeDefaultOptions()
	options.Reorder = krusty.ReorderOptionLegacy
	built, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		return nil, err
	}
	return built.AsYaml()
}

func check(text []byte) error {
	// The Operator's objects are decoded strictly; what it thinks of their values only it knows.
	if err := monitoring.AddToScheme(legacyscheme.Scheme); err != nil {
		return err
	}
	decoder := serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	pods, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return err
	}
	level := security.LevelVersion{Level: security.LevelRestricted, Version: security.LatestVersion()}
	var problems []error
	for _, document := range bytes.Split(text, []byte("\n---\n")) {
		object, kind, err := decoder.Decode(document, nil, nil)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		// The server itself changes what it gets.
		template := template(object.DeepCopyObject())
		found := findings{}
		if kind.GroupVersion() != monitoring.SchemeGroupVersion {
			found.add(create(object, kind, &found))
		}
		if template != nil {
			result := policy.AggregateCheckResults(pods.EvaluatePod(level, &template.ObjectMeta, &template.Spec))
			if !result.Allowed {
				found.add(errors.New(result.ForbiddenDetail()))
			}
		}
		accessor, err := meta.Accessor(object)
		if err != nil {
			return err
		}
		for _, problem := range found {
			problems = append(problems, fmt.Errorf("%s %s: %w", kind.Kind, accessor.GetName(), problem))
		}
	}
	return errors.Join(problems...)
}

// create does to an object what the API server does before it stores it.
func create(object runtime.Object, kind *schema.GroupVersionKind, found *findings) error {
	strategy, known := strategies[kind.GroupKind()]
	if !known {
		return errors.New("the check knows no such kind")
	}
	legacyscheme.Scheme.Default(object)
	hub := schema.GroupVersion{Group: kind.Group, Version: runtime.APIVersionInternal}
	internal, err := legacyscheme.Scheme.ConvertToVersion(object, hub)
	if err != nil {
		return err
	}
	if headless, is := internal.(*core.Service); is && headless.Spec.ClusterIP != "" {
		headless.Spec.ClusterIPs = []string{headless.Spec.ClusterIP}
	}
	accessor, err := meta.Accessor(internal)
	if err != nil {
		return err
	}
	rest.FillObjectMetaSystemFields(accessor)
	about := &request.RequestInfo{APIGroup: kind.Group, APIVersion: kind.Version}
	ctx := request.WithNamespace(request.WithRequestInfo(request.NewContext(), about), accessor.GetNamespace())
	return rest.BeforeCreate(strategy, warning.WithWarningRecorder(ctx, found), internal)
}

// template returns what a workload makes its pods of; nil if it makes none.
func template(object runtime.Object) *corev1.PodTemplateSpec {
	switch workload := object.(type) {
	case *appsv1.Deployment:
		return &workload.Spec.Template
	case *appsv1.StatefulSet:
		return &workload.Spec.Template
	case *batchv1.Job:
		return &workload.Spec.Template
	}
	return nil
}

// findings are what is wrong with one object, the server's warnings included.
type findings []error

func (found *findings) add(problem error) {
	if problem != nil {
		*found = append(*found, problem)
	}
}

func (found *findings) AddWarning(_, text string) { found.add(errors.New(text)) }
