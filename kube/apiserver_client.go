package kube

import (
	"errors"
	"fmt"
	"net"
	"net/url"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// lister lists and watches the objects of one kind.
type lister = cache.ListerWatcher

// listers makes clients of just the two API groups that are read: the clientset of
// all groups would cost megabytes on every node.
func listers(cfg *rest.Config) (out [kinds]lister, err error) {
	scheme := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(scheme)) // fail only if types were registered twice
	utilruntime.Must(networkingv1.AddToScheme(scheme))
	codecs := serializer.NewCodecFactory(scheme)
	core, err := groupClient(cfg, "/api", corev1.SchemeGroupVersion, codecs)
	if err != nil {
		return out, err
	}
	networking, err := groupClient(cfg, "/apis", networkingv1.SchemeGroupVersion, codecs)
	if err != nil {
		return out, err
	}
	out[namespaceKind] = cache.NewListWatchFromClient(core, "namespaces", "", fields.Everything())
	out[podKind] = cache.NewListWatchFromClient(core, "pods", "", livePods())
	out[nodeKind] = cache.NewListWatchFromClient(core, "nodes", "", fields.Everything())
	out[policyKind] = cache.NewListWatchFromClient(networking, "networkpolicies", "", fields.Everything())
	return out, nil
}

// livePods spares the transfer of pods that ended, often most of a cluster's. A
// pod that ends is reported as deleted then.
func livePods() fields.Selector {
	return fields.AndSelectors(
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)))
}

func groupClient(cfg *rest.Config, path string, gv schema.GroupVersion, codecs serializer.CodecFactory) (*rest.RESTClient, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.APIPath, cfg.GroupVersion = path, &gv
	cfg.NegotiatedSerializer = codecs.WithoutConversion()
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.QPS = -1 // reflectors back off; a limit on top would only hide delays
	return rest.RESTClientFor(cfg)
}

// failure is an error whose text stays the same while its cause does.
type failure struct {
	text  string
	cause error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.cause }

// describeFailure makes one text of what is one problem to the operator: without
// the request, which has a new revision each time, and without the client's port.
// An unreachable server fails all kinds alike.
func describeFailure(k kind, err error) string {
	var network *net.OpError
	switch {
	case errors.As(err, &network) && network.Addr != nil:
		return fmt.Sprintf("%s %s: %v", network.Op, network.Addr, network.Err)
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("%v (the ClusterRole must allow list and watch)", err)
	case apierrors.IsUnauthorized(err):
		return "the credentials are not accepted: " + err.Error()
	}
	var request *url.Error
	if errors.As(err, &request) {
		return request.Err.Error()
	}
	return k.String() + ": " + err.Error()
}
