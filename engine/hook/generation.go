package hook

// Generations returns, for each family ("IPv4", "IPv6"), the number that connection
// marks must carry to be believed. It changes, and comes round, whenever something
// is revoked.
func (h *Hook) Generations() map[string]uint32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	generations := map[string]uint32{}
	for _, s := range h.stacks {
		generations[s.family.String()] = s.generation
	}
	return generations
}
