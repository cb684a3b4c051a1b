// Package kube turns Kubernetes objects into the snapshots package policy
// compiles. Objects come from manifests, a file or the files of a directory as
// kubectl apply -f takes them, or one by one from any other source (PodFromAPI,
// NamespaceFromAPI, NodeFromAPI).
//
//	path ─▶ list files ─▶ split into documents ─▶ YAML → JSON ─▶ strict decode
//	     ─▶ validate (policy/validation) ─▶ default ─▶ policy.Snapshot + Report
//
// # What is read
//
// In a directory: *.yaml, *.yml and *.json directly in it, and with
// Options.Recursive in its subdirectories; symbolic links to files are followed,
// so a mounted ConfigMap works. Hidden files (a leading dot) are left out and
// noted. A file named explicitly may have any name.
//
// In a file: any number of YAML documents, or JSON objects one after the other;
// Namespace, Pod, Node, NetworkPolicy and Lists of them. YAML is read as kubectl
// reads it (YAML 1.1: an unquoted yes is a boolean). Other kinds are skipped and
// listed in the Report, kinds of other policy APIs with the remark that they are
// not enforced.
//
// # What is refused
//
// Everything an API server would refuse under strict field validation: unknown,
// duplicate and wrongly typed fields (names are case-sensitive), and what package
// validation lists. Beyond that, an object that occurs twice, and files that are
// not UTF-8. All problems of all files come in one error. A load with problems
// yields no snapshot: half of a policy set may allow what the whole denies.
package kube
