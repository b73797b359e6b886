// Ends well; nothing but itself is needed to load it.
int main(void) { return 0; }
