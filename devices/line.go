package devices

// Line is an interrupt line into a pin of an interrupt controller. Set says
// whether the device asserts it; saying the same again changes nothing.
// It may be called from any goroutine, also with the device's own lock held:
// a Line never calls back into a device.
type Line interface {
	Set(asserted bool)
}

// MSI is a message signalled interrupt: a write of Data to Address, in the
// format of SDM volume 3 §11.11.
type MSI struct {
	Address uint64
	Data    uint32
}
