// Package deploytest tests what users install: the manifests and the chart with
// helm's library and with a real API server, the image's recipe, and an agent that
// runs with exactly the privileges and arguments of the DaemonSet.
//
// It is a module of its own, so that users of netverdict download neither helm nor
// a Dockerfile parser. Its tests need root: they run an agent in namespaces.
package deploytest

//go:generate go run ./generate
