from lab.train.training import main

main()
