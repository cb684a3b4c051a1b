module github.com/netverdict/netverdict/bench/peers

go 1.26.0

replace github.com/netverdict/netverdict => ../..
