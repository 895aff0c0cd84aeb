DATA := target/data

.PHONY: data
data: $(DATA)/.done

# The real data that tests read: fetched from npm once, pinned, never skipped.
$(DATA)/.done:
	mkdir -p $(DATA)
	cd $(DATA) && npm pack --silent vega-datasets@3.2.1 msgpack-test-suite@1.0.0
	cd $(DATA) && for p in vega-datasets-3.2.1 msgpack-test-suite-1.0.0; do \
	  mkdir -p $${p%-*} && tar xzf $$p.tgz -C $${p%-*} --strip-components=1; done
	touch $@
