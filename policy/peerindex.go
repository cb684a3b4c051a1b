package policy

import (
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// peerIndex finds the used peers that select a group: groups asks for the groups
// of a peer, this is the other way round. Each peer is listed once, under the most
// telling thing that it requires.
type peerIndex struct {
	inNamespace map[string][]*peer   // of selectors without namespaces: the policy's own
	byPodLabel  map[labelKey][]*peer // with namespace ""
	byNamespace map[labelKey][]*peer // by a label of the namespace
	others      map[string][]*peer   // under ""
	meter       *meter
}

func newPeerIndex(m *meter) *peerIndex {
	return &peerIndex{
		meter:       m,
		inNamespace: map[string][]*peer{}, byPodLabel: map[labelKey][]*peer{},
		byNamespace: map[labelKey][]*peer{}, others: map[string][]*peer{},
	}
}

// places calls visit for every list that a peer belongs to.
func (x *peerIndex) add(p *peer) {
	if p.namespaces == nil {
		x.inNamespace[p.namespace] = append(x.inNamespace[p.namespace], p)
		return
	}
	keys, index := x.keys(p)
	if index == nil {
		x.others[""] = append(x.others[""], p)
	}
	for _, k := range keys {
		index[k] = append(index[k], p)
	}
}

func (x *peerIndex) remove(p *peer) {
	if p.namespaces == nil {
		dropFrom(x.inNamespace, p.namespace, p)
		return
	}
	keys, index := x.keys(p)
	if index == nil {
		dropFrom(x.others, "", p)
	}
	for _, k := range keys {
		dropFrom(index, k, p)
	}
}

// keys are the places of a peer with a namespace selector.
func (x *peerIndex) keys(p *peer) ([]labelKey, map[labelKey][]*peer) {
	if keys := requiredValues(p.pods); keys != nil {
		return keys, x.byPodLabel
	}
	if keys := requiredValues(p.namespaces); keys != nil {
		return keys, x.byNamespace
	}
	return nil, nil
}

// requiredValues are labels of which an object needs one to be selected; nil if
// the selector names none.
func requiredValues(sel labels.Selector) []labelKey {
	reqs, _ := sel.Requirements()
	for i := range reqs {
		if !namesValues(&reqs[i]) {
			continue
		}
		var keys []labelKey
		for _, v := range distinct(reqs[i].ValuesUnsorted()) {
			keys = append(keys, labelKey{"", reqs[i].Key(), v})
		}
		return keys
	}
	return nil
}

// selecting lists the peers that select a group, by id.
func (x *peerIndex) selecting(g *group, namespace labels.Set) []*peer {
	var found []*peer
	look := func(list []*peer) {
		for _, p := range list {
			x.meter.compared(costOf(p.pods))
			if p.pods.Matches(g.labels) && (p.namespaces == nil || p.namespaces.Matches(namespace)) {
				found = append(found, p)
			}
		}
	}
	look(x.inNamespace[g.namespace])
	look(x.others[""])
	for k, v := range g.labels {
		look(x.byPodLabel[labelKey{"", k, v}])
	}
	for k, v := range namespace {
		look(x.byNamespace[labelKey{"", k, v}])
	}
	slices.SortFunc(found, comparePeers)
	return found
}

func comparePeers(a, b *peer) int { return int(int64(a.id) - int64(b.id)) }

// insertPeer adds a peer to a list by id, if it is not there.
func insertPeer(list []*peer, p *peer) []*peer {
	at, known := slices.BinarySearchFunc(list, p, comparePeers)
	if known {
		return list
	}
	return slices.Insert(list, at, p)
}

func removePeer(list []*peer, p *peer) []*peer {
	at, known := slices.BinarySearchFunc(list, p, comparePeers)
	if !known {
		return list
	}
	return slices.Delete(list, at, at+1)
}

// peersKey appends the ids of peers, to use a list of them as a map key.
func peersKey(b []byte, peers []*peer) []byte {
	for _, p := range peers {
		b = append(b, byte(p.id), byte(p.id>>8), byte(p.id>>16), byte(p.id>>24))
	}
	return b
}

func policiesKey(b []byte, policies []*parsedPolicy) []byte {
	for _, p := range policies {
		b = append(b, byte(p.id), byte(p.id>>8), byte(p.id>>16), byte(p.id>>24))
	}
	return b
}
