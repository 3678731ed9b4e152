package vpci

import "sync/atomic"

// Bits of the ISR status (§4.1.4.5).
const (
	isrQueue  = 1
	isrConfig = 2
)

// interruptQueue tells the driver that a queue has something for it. Workers
// call it.
func (f *Function) interruptQueue(i int) {
	// There is no interrupt pin; the bits are for a driver that polls.
	setISR(&f.isr, isrQueue)
	f.notify(&f.queues[i].vector)
}

// interruptConfig tells the driver to look at status and configuration.
func (f *Function) interruptConfig() {
	setISR(&f.isr, isrConfig)
	f.notify(&f.configVector)
}

// setISR writes only if it must: all workers of a device share the word.
func setISR(isr *atomic.Uint32, bits uint32) {
	if isr.Load()&bits != bits {
		isr.Or(bits)
	}
}

func (f *Function) notify(vector *atomic.Uint32) {
	if v := vector.Load(); v != noVector {
		f.msix.Notify(int(v))
	}
}

// configChanged is called when the device configuration space has changed: the
// driver reads the generation before and after it reads several fields, and
// again if it is not the same (§2.5.1).
func (f *Function) configChanged() {
	f.generation.Add(1)
	if f.status.Load()&statusDriverOK != 0 {
		f.interruptConfig()
	}
}

// interruptAll interrupts for everything that the driver may have missed. An
// interrupt that was on its way to a processor when the state was saved is in
// none of the states; one too many does no harm.
func (f *Function) interruptAll() {
	if f.status.Load()&statusDriverOK == 0 {
		return
	}
	for i := range f.queues {
		if f.queues[i].Enabled() {
			f.interruptQueue(i)
		}
	}
	if f.Err() != nil || f.isr.Load()&isrConfig != 0 {
		f.interruptConfig()
	}
}
